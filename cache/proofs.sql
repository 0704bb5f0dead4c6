-- Who proved to an origin that they may read a ref, and when (proofs.py). `asker` is a digest of the
-- ref and the credentials under a key that is not in here.
CREATE TABLE proof (
    asker     BLOB PRIMARY KEY,
    proved_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX proof_by_time ON proof (proved_ns);
