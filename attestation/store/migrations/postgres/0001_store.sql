-- Values with their history. `value` is sealed (AES-256-GCM) with everything else of its row as associated data.
-- state: 0 live, 1 erased (its value was removed by a later deletion), 2 the deletion itself.
-- Names are compared byte by byte, as SQLite does, whatever the locale of the database.
CREATE TABLE versions (
    namespace TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    state BIGINT NOT NULL,
    value BYTEA NOT NULL,
    size BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    modified TEXT NOT NULL,
    who TEXT NOT NULL,
    PRIMARY KEY (namespace, name, version)
);

-- One row: under which key values are sealed, and the end of the audit log. Locked by whoever writes.
CREATE TABLE store_state (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    generation BIGINT NOT NULL,
    key_check BYTEA NOT NULL,
    audit_seq BIGINT NOT NULL,
    audit_hash BYTEA NOT NULL,
    audit_time TEXT NOT NULL,
    audit_signature BYTEA NOT NULL
);

-- The audit log: records in clear (they hold no secrets), each with the hash of itself and all before it.
CREATE TABLE audit (
    seq BIGINT NOT NULL PRIMARY KEY,
    record TEXT NOT NULL,
    hash BYTEA NOT NULL
);

-- Signed states of the audit log.
CREATE TABLE audit_checkpoints (
    seq BIGINT NOT NULL PRIMARY KEY,
    hash BYTEA NOT NULL,
    time TEXT NOT NULL,
    signature BYTEA NOT NULL
);

-- Sessions that replicas share. Their ids are credentials, so only hashes of them are here; tokens are sealed.
-- Not logged: after a crash of the database there are none, and guests attest again.
-- state: 0 challenged, 1 answered, 2 attested.
CREATE UNLOGGED TABLE sessions (
    id BYTEA NOT NULL PRIMARY KEY,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    peer TEXT COLLATE "C" NOT NULL,
    context TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires BIGINT NOT NULL,
    state BIGINT NOT NULL,
    token BYTEA NOT NULL,
    size BIGINT NOT NULL,
    affirming BIGINT NOT NULL
);
CREATE INDEX sessions_open ON sessions (peer, number) WHERE state < 2;
CREATE INDEX sessions_attested ON sessions (size) WHERE state = 2;
CREATE INDEX sessions_expires ON sessions (expires);
