"""Tables, figures and the offline HTML report, made from records and saved predictions without a model or PyTorch.

``__init__.pyi`` declares the public names; each is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
