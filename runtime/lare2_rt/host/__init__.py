"""What the operating system gives: files, folders, locks, processes, the console, facts of the machine."""
