import json
import logging
import signal

import pytest

from rxtone import logs
from rxtone.stopping import Stop, stop_on_signals


def test_a_wish_waits_for_the_step_and_nothing_else():
    stop = Stop()
    with stop.after_the_step():
        stop.ask(signal.SIGTERM)
    assert (stop.wanted(), stop.exit_code()) == (True, 143)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)
    assert stop.exit_code() == 130


def test_handlers_come_back_after_the_block():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.ask
        with stop.after_the_step():
            signal.raise_signal(signal.SIGTERM)
        assert stop.wanted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_log_line_carries_what_it_is_given_and_no_message_of_an_exception(capsys):
    logger = logging.getLogger("rxtone")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        logs.start_logging(as_json=True)
        with pytest.raises(KeyError) as caught:
            raise KeyError("zebrafish")
        place = logs.place(caught.value)
        (line_of_stack,) = logs.stack(caught.value)
        assert line_of_stack.endswith(" in test_a_log_line_carries_what_it_is_given_and_no_message_of_an_exception")
        logging.getLogger("rxtone.serving").info("refused", extra={"id": "a1", "status": 422, "place": place})
        line = json.loads(capsys.readouterr().err)
        assert {key: line[key] for key in ("level", "message", "id", "status", "logger")} == {
            "level": "info", "message": "refused", "id": "a1", "status": 422, "logger": "rxtone.serving",
        }  # fmt: skip
        assert line["place"].startswith("test_stopping.py:")
        assert "zebrafish" not in json.dumps(line)
        assert len({logs.new_id() for _ in range(100)}) == 100
    finally:
        logger.handlers, logger.level, logger.propagate = before
