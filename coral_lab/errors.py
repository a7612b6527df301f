"""What a user can mend: every such error says what to do."""


class WorkbenchError(RuntimeError):
    """A checkpoint, a download or a store that cannot be used. (A single item that cannot is an ItemError.)"""
