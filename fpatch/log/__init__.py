"""The records of a run, and the sinks that copy them: TensorBoard and MLflow.

The log on disk (`records.jsonl`) is written first; the sinks are copies of it. This loop is correct for a
crash at any moment, `kill -9` included:

    log = open_log(folder, resume_step=state.step if resumed else None)
    for state, info in fit(...):
        log.scalars(state.step, info.terms)
        if checkpoint_due:
            log.flush()  # 1. force the records to the disk
            save(state)  # 2. save the state after them
            log.commit(state.step)  # 3. declare them final: sinks may send them
    log.close()
"""

from fpatch.log.records import Record, Records
from fpatch.log.sinks import Log, Sink, open_log

__all__ = ["Log", "Record", "Records", "Sink", "open_log"]
