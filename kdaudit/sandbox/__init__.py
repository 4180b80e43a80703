"""Confinement: a worker process for the suspect model, without files, network or new programs, under caps.

`confine` puts the present process behind Landlock, seccomp and resource limits; `process` starts a worker and talks
to it. What the worker does is none of this room's business (`kdaudit.worker` says that). Whatever comes back from a
worker is as hostile as the model that it holds.
"""
