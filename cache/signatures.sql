-- Signatures that were verified, once for each content of whom to trust: `trust` is a digest of the
-- keys and names of a rule, so a rule that changes verifies again. `files` is a bitmap of the file
-- numbers that were judged.
CREATE TABLE signature (
    artifact    INTEGER NOT NULL REFERENCES artifact ON DELETE CASCADE,
    trust       BLOB NOT NULL,
    method      TEXT NOT NULL,
    signer      TEXT NOT NULL,
    files       BLOB NOT NULL,
    verified_ns INTEGER NOT NULL,
    PRIMARY KEY (artifact, trust)
) WITHOUT ROWID;
