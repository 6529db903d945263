-- Checkpoints of one cluster: committed blocks and their transactions, for SQL readers and as an
-- archive. A read model: it is written in order and exactly once by `storage.checkpoint`, and can
-- always be rebuilt from the chain. The steps beside this one follow in the order of their numbers,
-- in one transaction; they need PostgreSQL 14 or later.

-- An administrator may have made the schema for a user who is not allowed to.
DO $$
BEGIN
    IF to_regnamespace('bitnexus') IS NULL THEN
        CREATE SCHEMA bitnexus;
    END IF;
END
$$;
COMMENT ON SCHEMA bitnexus IS
    'Checkpoints of one BitNexus cluster: a copy of its chain, never read by consensus';

CREATE TABLE bitnexus.schema_version (
    version      integer     NOT NULL PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE bitnexus.schema_version IS 'One row for each version of this schema installed here';
COMMENT ON COLUMN bitnexus.schema_version.version IS 'The version; the highest one is in force';
COMMENT ON COLUMN bitnexus.schema_version.installed_at IS 'When it was installed';

CREATE TABLE bitnexus.checkpoint (
    singleton  boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (singleton),
    cluster_id bytea       NOT NULL CHECK (octet_length(cluster_id) = 32),
    index      bigint      NOT NULL CHECK (index >= -1),
    hash       bytea       NOT NULL CHECK (octet_length(hash) = 32),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE bitnexus.checkpoint IS
    'How far the chain is copied: one row, moved in the same transaction as the blocks it counts';
COMMENT ON COLUMN bitnexus.checkpoint.singleton IS 'Always true: there is one row';
COMMENT ON COLUMN bitnexus.checkpoint.cluster_id IS
    'The cluster that is copied here: the hash of its genesis block';
COMMENT ON COLUMN bitnexus.checkpoint.index IS 'The index of the last block copied; -1 before genesis';
COMMENT ON COLUMN bitnexus.checkpoint.hash IS
    'The hash of the last block copied; 32 zero bytes before genesis';
COMMENT ON COLUMN bitnexus.checkpoint.updated_at IS 'When it last moved, by the clock of PostgreSQL';

CREATE TABLE bitnexus.blocks (
    index             bigint        NOT NULL PRIMARY KEY,
    version           integer       NOT NULL,
    cluster_id        bytea         NOT NULL,
    term              bigint        NOT NULL,
    previous_hash     bytea         NOT NULL,
    transactions_root bytea         NOT NULL,
    transaction_count integer       NOT NULL,
    history_root      bytea         NOT NULL,
    timestamp_us      bigint        NOT NULL,
    sealer            bytea         NOT NULL,
    nonce             numeric(20,0) NOT NULL,
    hash              bytea         NOT NULL,
    signature         bytea         NOT NULL,
    sealed_at         timestamptz   NOT NULL GENERATED ALWAYS AS (
        (timestamp '1970-01-01' + timestamp_us * interval '1 microsecond') AT TIME ZONE 'UTC'
    ) STORED
);
COMMENT ON TABLE bitnexus.blocks IS 'Committed blocks: every field of the header, hash and signature';
COMMENT ON COLUMN bitnexus.blocks.index IS 'The place in the chain; genesis is 0';
COMMENT ON COLUMN bitnexus.blocks.version IS 'The version of the block format';
COMMENT ON COLUMN bitnexus.blocks.cluster_id IS 'The hash of the genesis block; zero in genesis itself';
COMMENT ON COLUMN bitnexus.blocks.term IS 'The Raft term of the leader that sealed the block';
COMMENT ON COLUMN bitnexus.blocks.previous_hash IS 'The hash of the block before; zero in genesis';
COMMENT ON COLUMN bitnexus.blocks.transactions_root IS
    'The Merkle root over the transactions, as in RFC 6962';
COMMENT ON COLUMN bitnexus.blocks.transaction_count IS 'How many transactions the block has';
COMMENT ON COLUMN bitnexus.blocks.history_root IS
    'The Merkle root over the hashes of all blocks before, as in RFC 6962';
COMMENT ON COLUMN bitnexus.blocks.timestamp_us IS
    'When it was sealed, by the clock of the leader: microseconds since 1970 in UTC';
COMMENT ON COLUMN bitnexus.blocks.sealer IS 'The Ed25519 public key of the member that sealed it';
COMMENT ON COLUMN bitnexus.blocks.nonce IS '64 random bits of the seal, as an unsigned number';
COMMENT ON COLUMN bitnexus.blocks.hash IS 'SHA-256 of the header';
COMMENT ON COLUMN bitnexus.blocks.signature IS 'The Ed25519 signature of the sealer over the hash';
COMMENT ON COLUMN bitnexus.blocks.sealed_at IS 'timestamp_us as a point in time';

-- No foreign key to blocks: both are written in one transaction and never changed, and the check
-- would cost more than the copy itself.
CREATE TABLE bitnexus.transactions (
    id          uuid    NOT NULL,
    block_index bigint  NOT NULL,
    position    integer NOT NULL,
    user_id     text    NOT NULL COLLATE "C",
    kind        text    NOT NULL COLLATE "C",
    payload     jsonb   NOT NULL,
    raw         bytea   NOT NULL,
    CONSTRAINT transactions_pkey PRIMARY KEY (block_index, position),
    CONSTRAINT transactions_id_key UNIQUE (id)
);
CREATE INDEX transactions_user_history
    ON bitnexus.transactions (user_id, block_index DESC, position DESC);
COMMENT ON TABLE bitnexus.transactions IS 'The transactions of the committed blocks';
COMMENT ON COLUMN bitnexus.transactions.id IS 'The id, unique over the whole chain';
COMMENT ON COLUMN bitnexus.transactions.block_index IS 'The block it stands in';
COMMENT ON COLUMN bitnexus.transactions.position IS 'Its place in the block, from 0';
COMMENT ON COLUMN bitnexus.transactions.user_id IS 'The user it belongs to';
COMMENT ON COLUMN bitnexus.transactions.kind IS 'What kind of transaction it is';
COMMENT ON COLUMN bitnexus.transactions.payload IS 'The payload, converted from raw for SQL readers';
COMMENT ON COLUMN bitnexus.transactions.raw IS
    'The canonical bytes (msgpack) that the Merkle root covers: the truth behind the other columns';
COMMENT ON INDEX bitnexus.transactions_user_history IS 'A history by user, newest first';

INSERT INTO bitnexus.schema_version (version) VALUES (1);
