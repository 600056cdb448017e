"""Measures of why an ensemble works: agreement, CKA, connectivity, activation maps, strong edges, backgrounds.

``__init__.pyi`` declares the public names; each is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
