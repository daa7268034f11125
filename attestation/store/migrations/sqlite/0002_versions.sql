-- Values with their history. `value` is sealed (AES-256-GCM) with everything else of its row as associated data.
-- state: 0 live, 1 erased (its value was removed by a later deletion), 2 the deletion itself.
CREATE TABLE versions (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    state INTEGER NOT NULL,
    value BLOB NOT NULL,
    size INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    modified TEXT NOT NULL,
    who TEXT NOT NULL,
    PRIMARY KEY (namespace, name, version)
) STRICT, WITHOUT ROWID;
INSERT INTO versions SELECT namespace, name, 1, 0, value, size, '', modified, '' FROM entries;
DROP TABLE entries;

-- One row: under which key values are sealed, and the end of the audit log. Locked by whoever writes.
CREATE TABLE store_state (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL,
    key_check BLOB NOT NULL,
    audit_seq INTEGER NOT NULL,
    audit_hash BLOB NOT NULL,
    audit_time TEXT NOT NULL,
    audit_signature BLOB NOT NULL
) STRICT;

-- The audit log: records in clear (they hold no secrets), each with the hash of itself and all before it.
CREATE TABLE audit (
    seq INTEGER NOT NULL PRIMARY KEY,
    record TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;

-- Signed states of the audit log.
CREATE TABLE audit_checkpoints (
    seq INTEGER NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL,
    time TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
