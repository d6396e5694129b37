"""Recommends with a trained model: writes a list of items per user to a file, or serves requests and a web page.

The server needs the packages of the extra `serve`: `pip install "trl-rec[serve]"`.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["ServingConfig", "UserHistories", "WrittenLists", "build_app", "serve", "write_lists"]

if TYPE_CHECKING:
    from trl_rec.serving.app import build_app
    from trl_rec.serving.config import ServingConfig
    from trl_rec.serving.server import serve
    from trl_rec.serving.user_histories import UserHistories
    from trl_rec.serving.user_lists import WrittenLists, write_lists
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "app": ["build_app"],
            "config": ["ServingConfig"],
            "server": ["serve"],
            "user_histories": ["UserHistories"],
            "user_lists": ["WrittenLists", "write_lists"],
        },
    )
