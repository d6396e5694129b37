"""The tables `NOTICES` and `WARNINGS` in `trl_rec.compat` list messages that need no action from the user. These
messages are hidden, unless they are logged as errors. All other messages are shown."""

import logging
import warnings

import pytest

from trl_rec.compat import NOTICES, WARNINGS, hide_notices


@pytest.mark.parametrize("name", NOTICES)
def test_only_the_named_messages_are_hidden(name: str, caplog: pytest.LogCaptureFixture) -> None:
    hide_notices()
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)
    try:
        for beginning in NOTICES[name]:
            logger.warning(f"{beginning}: some reason")
            logger.error(f"{beginning}: an error")
            logger.warning(f"another message, {beginning}")
    finally:
        logger.removeHandler(caplog.handler)
    levels = [record.levelname for record in caplog.records if record.name == name]
    assert set(levels) == {"ERROR", "WARNING"} and "some reason" not in caplog.text
    hide_notices()
    assert len(logger.filters) == 1, "the filter was added more than once"


def test_only_the_named_warnings_are_hidden() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_notices()
        for beginning, category in WARNINGS:
            warnings.warn(f"{beginning} and so on", category, stacklevel=1)
            warnings.warn(f"not {beginning}", category, stacklevel=1)
    assert [str(one.message) for one in shown] == [f"not {beginning}" for beginning, _ in WARNINGS]
