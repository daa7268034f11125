-- Names that can be taken once until they expire, e.g. answered challenges: who inserts one has taken it. Logged, unlike sessions:
-- after a crash of the database what was taken must stay so.
CREATE TABLE once (
    namespace TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    expires BIGINT NOT NULL,
    PRIMARY KEY (namespace, name)
);
CREATE INDEX once_expires ON once (expires);

-- Where the audit log begins when older records were archived: number and hash of the last one that is gone, signed. At most one row.
CREATE TABLE audit_anchor (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    time TEXT NOT NULL,
    signature BYTEA NOT NULL
);
