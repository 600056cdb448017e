"""The result types of runs, studies and diagnoses, and the JSON files that store them.

``__init__.pyi`` declares the public names; each is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
