"""shiftproof: robust fine-tuning of zero-shot image models.

Fine-tune a model, ensemble its weights with those of the zero-shot model (WiSE-FT), measure both under
distribution shift, and write a report. The top level has the names that such a program needs; the packages
(``shiftproof.evaluation``, ``shiftproof.diagnosis`` and so on) contain the rest.

``__init__.pyi`` declares the public names; each is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
