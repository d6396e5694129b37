"""What is learned: pure functions of tensors, one file a method, that return a `LossOutput`."""

from trl_rec._lazy import lazy_names


__all__ = ["LossOutput", "bear_loss"]
__getattr__, __dir__ = lazy_names(__name__, {"LossOutput": "output", "bear_loss": "bear"})
