"""Fuzzing of whole images: one small declaration a format, a :class:`~.subject.Subject`."""
