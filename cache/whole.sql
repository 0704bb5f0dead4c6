-- What whole files are, by the digest that origins publish (`sha256:<hex>`) and the name of their
-- content. `ours`: this node has read it itself; else others said so, and it was believed.
CREATE TABLE whole (
    content BLOB PRIMARY KEY,
    sha256  BLOB NOT NULL,
    ours    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX whole_by_sha256 ON whole (sha256);
CREATE TRIGGER whole_gone AFTER DELETE ON file WHEN OLD.content IS NOT NULL BEGIN
    DELETE FROM whole WHERE content = OLD.content;
END;
