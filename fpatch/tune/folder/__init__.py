"""The folder of a sweep: the journal, its copy in an object store, and the stores."""
