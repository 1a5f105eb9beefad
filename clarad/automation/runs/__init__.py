"""One run of a hook or a task: attempts, commands, what they are told and what they write."""
