"""Around the machine: errors and exit statuses, signals, processes, random numbers, memory."""
