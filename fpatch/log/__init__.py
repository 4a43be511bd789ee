"""The records of a run, and the sinks that copy them: TensorBoard and MLflow.

The log on disk (`records.jsonl`) is written first and is the truth; the sinks are copies of it. This loop is
right whatever the moment of a crash, `kill -9` included:

    log = open_log(folder, resume_step=state.step if resumed else None)
    for state, info in fit(...):
        log.scalars(state.step, info.terms)
        if checkpoint_due:
            log.flush()  # 1. the records are on disk
            save(state)  # 2. the state that they lead to
            log.commit(state.step)  # 3. they are final: sinks may send what cannot be taken back
    log.close()
"""

from fpatch.log.records import Record, Records
from fpatch.log.sinks import Log, Sink, open_log

__all__ = ["Log", "Record", "Records", "Sink", "open_log"]
