"""Filters and splits a log in loops over plain lists. An interaction is a tuple that begins with user, item and
time."""

SPLITS = ("train", "validation", "test")


def k_core(log, min_user, min_item):
    """Removes one user or one item at a time, until every user and item has enough interactions."""
    log = list(log)
    while True:
        for column, least in ((0, min_user), (1, min_item)):
            keys = [row[column] for row in log]
            few = next((key for key in keys if keys.count(key) < least), None)
            if few is not None:
                log = [row for row in log if row[column] != few]
                break
        else:
            return log


def sequences(log):
    """Returns each user's interactions, sorted by time. Interactions with equal times keep the order of the log."""
    users = list(dict.fromkeys(row[0] for row in log))
    return {user: sorted((row for row in log if row[0] == user), key=lambda row: row[2]) for user in users}


def label_by_time(log):
    """Returns the split that each interaction belongs to."""
    times = sorted(row[2] for row in log)
    cuts = times[len(times) * 8 // 10], times[len(times) * 9 // 10]
    return [SPLITS[(row[2] >= cuts[0]) + (row[2] >= cuts[1])] for row in log]


def split(log, rule, num_held_out=1):
    """Returns a dict from user to `(history, targets)` for each split. Both are lists of interactions."""
    if rule == "time":
        labels = dict(zip([id(row) for row in log], label_by_time(log), strict=True))
    rows = {name: {} for name in SPLITS}
    for user, sequence in sequences(log).items():
        if rule == "time":
            parts = {name: [row for row in sequence if labels[id(row)] == name] for name in SPLITS}
        else:
            held_out = num_held_out if len(sequence) > 2 * num_held_out else 0
            parts = {"train": list(sequence), "validation": [], "test": []}
            for name in ["test"] * held_out + ["validation"] * held_out:
                parts[name].insert(0, parts["train"].pop())
        before = []
        for name in SPLITS:
            if name == "train" and parts[name]:
                rows[name][user] = parts[name][:1], parts[name][1:]
            elif before and parts[name]:
                rows[name][user] = before, parts[name]
            before = before + parts[name]
    return rows
