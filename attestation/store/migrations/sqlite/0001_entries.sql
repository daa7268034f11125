-- Everything that a service remembers: one value per namespace and key. `value` is sealed (AES-256-GCM), `size` is the
-- length of what was sealed.
CREATE TABLE entries (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    size INTEGER NOT NULL,
    modified TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
