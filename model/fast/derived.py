"""Parts whose weights are final compute something from them once and keep it.

A part is given its faster form from outside (:func:`refine`): a subclass with the same parameters
and the same state dict. What it keeps is never saved or copied, and is right by these rules:

- nothing is kept before :meth:`Derives.derive` is called;
- loading weights into the part or anything in it, and moving it to another device or type, empties
  what is kept: it is made anew when it is next asked for;
- training ends it: ``train()`` while a parameter can be learned, or a forward pass in which
  gradients reach one. Another ``derive()`` begins it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Kept:
    """Results by key; nothing before :meth:`open` and after :meth:`close`."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] | None = None

    def open(self) -> None:
        """Forget former results and keep new ones."""
        self._found = {}

    def close(self) -> None:
        """Forget what there is and keep nothing more."""
        self._found = None

    def renew(self, *_: Any) -> None:
        """Forget what there is; the signature is that of a hook of ``load_state_dict``."""
        if self._found is not None:
            self._found = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, or its former result; None where nothing may be kept.

        Threads that ask at once may each make it; they get equal results.
        """
        found = self._found
        if found is None:
            return None
        if key not in found:
            with torch.inference_mode(False), torch.no_grad():
                found[key] = make()
        return found[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"_found": None if self._found is None else {}}


class Derives(nn.Module):
    """See the module's title; comes before the class of the paper among the bases."""

    kept: Kept

    def watch(self) -> None:
        """Begin: keep nothing yet, and notice when weights are loaded anywhere in this part."""
        self.kept = Kept()
        for part in self.modules():
            part.register_load_state_dict_post_hook(self.kept.renew)

    def derive(self) -> None:
        """The weights are final for now; refused while the part is in training mode."""
        if self.training:
            self.kept.close()
        else:
            self.kept.open()

    def derived(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, computed from the weights once; None where it must not be kept or used: not
        derived, being trained, where gradients flow, or while a compiler traces what is done.
        """
        if torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled():
            if self._learns():
                self.kept.close()
            return None
        if self.training:  # statistics of batch norms may change
            self.kept.renew()
            return None
        return self.kept.get(key, make)

    def train(self, mode: bool = True) -> Derives:
        """As every module; a part that learns gives up what it kept."""
        if mode and self._learns():
            self.kept.close()
        return super().train(mode)

    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def _apply(self, *args: Any, **options: Any) -> Derives:
        self.kept.renew()
        return super()._apply(*args, **options)


def refine(model: nn.Module, forms: Mapping[type, type]) -> None:
    """Give every part of ``model`` whose class is a key of ``forms`` the faster subclass there.

    Parts of other classes, subclasses of the keys among them, stay as they are.
    """
    for part in model.modules():
        form = forms.get(type(part))
        if form is not None:
            part.__class__ = form
            if isinstance(part, Derives):
                part.watch()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast would use for ``x`` here, or the dtype of ``x`` without autocast."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
