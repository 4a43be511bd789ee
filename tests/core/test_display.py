"""Progress where no bars can be, and a console whose text nobody takes."""

import io
import sys

from fpatch.core.display import Lines, console, progress_bars, shown
from fpatch.demo.tiny import tiny_study
from fpatch.runs.training import resume, train


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_line_every_thirty_seconds_says_step_loss_and_time_left():
    said: list[str] = []
    now = [0.0]
    show = Lines(said.append, clock=lambda: now[0])
    for step in range(1, 1001):
        show("training", step, 1000, f"loss {step / 1000:.3f}")
        now[0] += 10.0
    assert len(said) == 333
    assert said[0] == "training: 4 of 1000, loss 0.004, about 2 h 46 min left"
    assert said[-2] == "training: 997 of 1000, loss 0.997, less than a minute left"
    assert said[-1] == "training: 1000 done loss 1.000"


def test_time_left_counts_from_the_step_of_a_resume():
    said: list[str] = []
    now = [0.0]
    show = Lines(said.append, clock=lambda: now[0])
    for step in range(901, 905):
        show("training", step, 1000)
        now[0] += 10.0
    assert said == ["training: 904 of 1000, about 16 min left"]


def test_training_in_python_shows_itself_on_standard_error(tmp_path, capsys):
    run = train(tiny_study(tmp_path))
    resume(run.folder)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == f"run folder: {run.folder}"
    assert any(line.startswith("training: 4 done loss ") for line in lines)
    assert lines[-1] == f"resuming: {run.folder} from step 4 to 4"


def test_a_full_disk_under_the_console_ends_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    console.print("lost")
    with progress_bars() as on_progress:
        on_progress("training", 1, 1, "lost")
    with shown(None) as on_progress:
        on_progress("training", 2, 2, "lost")
    assert train(tiny_study(tmp_path)).checkpoint_steps() == [0, 4]
