"""What every trainer of this package shares."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "RecConfig",
    "RecTrainerMixin",
    "conclude",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.trainer import RecTrainerMixin
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "config": ["RecConfig"],
            "reporting": ["conclude", "save_run", "write_run"],
            "trainer": ["RecTrainerMixin"],
        },
    )
