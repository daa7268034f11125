-- Names that can be taken once until they expire, e.g. answered challenges: who inserts one has taken it.
CREATE TABLE once (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- Where the audit log begins when older records were archived: number and hash of the last one that is gone, signed. At most one row.
CREATE TABLE audit_anchor (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    time TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
