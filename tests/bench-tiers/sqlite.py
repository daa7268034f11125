"""Commits of SQLite in /scratch, each with its fsync: prints `sqlite_commit` and the median in ms."""

import os, sqlite3, sys, time

path = f"/scratch/bench-{os.getpid()}.db"
base = sqlite3.connect(path, isolation_level=None)
base.execute("pragma synchronous=full")
base.execute("create table t (a integer primary key, b text)")
times = []
for number in range(int(sys.argv[1])):
    begin = time.perf_counter()
    base.execute("insert into t values (?, ?)", (number, "x" * 100))
    times.append(time.perf_counter() - begin)
base.close()
os.unlink(path)
times.sort()
print("sqlite_commit", f"{times[len(times) // 2] * 1000:.4f}")
