-- The account of the store: which files there are, which of their chunks have verified, and which
-- artifacts, views, pins and refs they serve. Leases are files (lease.py), so that they can change
-- while the agent is down.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- One row per inode of ours. AUTOINCREMENT: the id names the file in partial/, and a name that
-- comes back would lend one file's chunks to another.
CREATE TABLE file (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    content    BLOB UNIQUE,                 -- file id of the manifest; NULL until every digest is known
    shape      BLOB NOT NULL,               -- digest of the chunk lengths
    bytes      INTEGER NOT NULL,
    chunks     INTEGER NOT NULL,
    held       INTEGER NOT NULL DEFAULT 0,  -- rows of `chunk`, kept by the triggers below
    held_bytes INTEGER NOT NULL DEFAULT 0,
    placed     INTEGER NOT NULL DEFAULT 0,  -- lies in files/<content>, not in partial/<id>
    suspect    INTEGER NOT NULL DEFAULT 0,  -- looked different from outside: re-hash before use
    ino        INTEGER,                     -- NULL: nothing on disk
    mtime_ns   INTEGER,                     -- of a placed file when last whole; NULL while it is repaired
    used_ns    INTEGER NOT NULL
);
CREATE INDEX file_by_shape ON file (shape) WHERE content IS NULL;

-- First contact: the file of this plan at this path, whose digests are not all known.
CREATE TABLE contact (
    plan BLOB NOT NULL,
    path TEXT NOT NULL,
    file INTEGER NOT NULL REFERENCES file ON DELETE CASCADE,
    PRIMARY KEY (plan, path)
) WITHOUT ROWID;
CREATE INDEX contact_by_file ON contact (file);

-- A row is the bit: these bytes of this file have this digest.
CREATE TABLE chunk (
    file   INTEGER NOT NULL REFERENCES file ON DELETE CASCADE,
    number INTEGER NOT NULL,
    start  INTEGER NOT NULL,
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (file, number)
) WITHOUT ROWID;
CREATE INDEX chunk_by_digest ON chunk (digest);

-- Chunks that a power cut may take back: written, not known to be on disk.
CREATE TABLE unsynced (
    file   INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (file, number)
) WITHOUT ROWID;

CREATE TRIGGER chunk_kept AFTER INSERT ON chunk BEGIN
    UPDATE file SET held = held + 1, held_bytes = held_bytes + NEW.length WHERE id = NEW.file;
    INSERT OR IGNORE INTO unsynced VALUES (NEW.file, NEW.number);
END;
CREATE TRIGGER chunk_dropped AFTER DELETE ON chunk BEGIN
    UPDATE file SET held = held - 1, held_bytes = held_bytes - OLD.length WHERE id = OLD.file;
    DELETE FROM unsynced WHERE file = OLD.file AND number = OLD.number;
END;

CREATE TABLE artifact (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     BLOB NOT NULL UNIQUE,
    manifest   BLOB NOT NULL,
    files      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    used_ns    INTEGER NOT NULL,
    pinned_ns  INTEGER
);
-- Which files of the artifact have been pulled, by their number in its manifest.
CREATE TABLE artifact_file (
    artifact INTEGER NOT NULL REFERENCES artifact ON DELETE CASCADE,
    number   INTEGER NOT NULL,
    file     INTEGER NOT NULL REFERENCES file,
    PRIMARY KEY (artifact, number)
) WITHOUT ROWID;
CREATE INDEX artifact_file_by_file ON artifact_file (file);

CREATE TABLE view (
    artifact INTEGER NOT NULL REFERENCES artifact ON DELETE CASCADE,
    name     TEXT NOT NULL,
    files    BLOB NOT NULL,  -- bitmap of file numbers
    PRIMARY KEY (artifact, name)
) WITHOUT ROWID;

-- What an origin called it. Immutable facts: they outlive the artifact they name.
CREATE TABLE ref (
    ref      TEXT NOT NULL,
    revision TEXT NOT NULL,
    artifact BLOB NOT NULL,
    seen_ns  INTEGER NOT NULL,
    PRIMARY KEY (ref, revision)
) WITHOUT ROWID;
CREATE INDEX ref_by_artifact ON ref (artifact);
