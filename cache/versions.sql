-- What a file of a ref was at the version that its origin said last: what has the same version now is
-- the same. Only of files that are here.
CREATE TABLE version (
    ref     TEXT NOT NULL,
    path    TEXT NOT NULL,
    version TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (ref, path)
) WITHOUT ROWID;
CREATE INDEX version_by_content ON version (content);
CREATE TRIGGER version_gone AFTER DELETE ON file WHEN OLD.content IS NOT NULL BEGIN
    DELETE FROM version WHERE content = OLD.content;
END;
