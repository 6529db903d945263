-- Version 2: blocks and transactions in partitions by block index, so that neither the indexes that
-- a copy writes nor those that a query of recent blocks reads outgrow the memory; indexes by kind
-- and by time. What version 1 holds becomes the first partition as it is: no row is rewritten.

ALTER TABLE bitnexus.blocks RENAME TO blocks_0;
ALTER TABLE bitnexus.blocks_0 RENAME CONSTRAINT blocks_pkey TO blocks_0_pkey;
ALTER TABLE bitnexus.transactions RENAME TO transactions_0;
ALTER TABLE bitnexus.transactions_0 RENAME CONSTRAINT transactions_pkey TO transactions_0_pkey;
ALTER INDEX bitnexus.transactions_user_history RENAME TO transactions_0_user_history;
-- Over all partitions no constraint can hold it. The chain holds it, and `bitnexus verify` finds a
-- row that is there twice.
ALTER TABLE bitnexus.transactions_0 DROP CONSTRAINT transactions_id_key;

CREATE TABLE bitnexus.blocks (
    LIKE bitnexus.blocks_0 INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING COMMENTS,
    CONSTRAINT blocks_pkey PRIMARY KEY (index)
) PARTITION BY RANGE (index);
COMMENT ON TABLE bitnexus.blocks IS 'Committed blocks: every field of the header, hash and signature';
CREATE INDEX blocks_sealed_at ON bitnexus.blocks (sealed_at, index);
COMMENT ON INDEX bitnexus.blocks_sealed_at IS 'From a time to the blocks of that time';

CREATE TABLE bitnexus.transactions (
    LIKE bitnexus.transactions_0 INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING COMMENTS,
    CONSTRAINT transactions_pkey PRIMARY KEY (block_index, position)
) PARTITION BY RANGE (block_index);
COMMENT ON TABLE bitnexus.transactions IS 'The transactions of the committed blocks';
COMMENT ON COLUMN bitnexus.transactions.id IS
    'The id, unique over the whole chain: the chain sees to it, no constraint could';
CREATE INDEX transactions_id ON bitnexus.transactions (id);
COMMENT ON INDEX bitnexus.transactions_id IS 'One transaction by its id';
CREATE INDEX transactions_user_history
    ON bitnexus.transactions (user_id, block_index DESC, position DESC);
COMMENT ON INDEX bitnexus.transactions_user_history IS 'A history by user, newest first';
CREATE INDEX transactions_kind_history
    ON bitnexus.transactions (kind, block_index DESC, position DESC);
COMMENT ON INDEX bitnexus.transactions_kind_history IS 'All of one kind, newest first';

CREATE TABLE bitnexus.partitions (
    first_index bigint      NOT NULL PRIMARY KEY,
    end_index   bigint      NOT NULL UNIQUE CHECK (end_index > first_index),
    made_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE bitnexus.partitions IS
    'The partitions blocks_N and transactions_N, where N is first_index: each a range of blocks';
COMMENT ON COLUMN bitnexus.partitions.first_index IS
    'The first block of the range; the partitions of 0 take what lies below it, too';
COMMENT ON COLUMN bitnexus.partitions.end_index IS 'The block after the last one of the range';
COMMENT ON COLUMN bitnexus.partitions.made_at IS 'When the partitions were made';

CREATE FUNCTION bitnexus.add_partition(first bigint, ending bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    child text;
    bounds text;
BEGIN
    bounds := CASE first WHEN 0 THEN 'MINVALUE' ELSE first::text END;
    bounds := format('FROM (%s) TO (%s)', bounds, ending);
    FOREACH parent IN ARRAY ARRAY['blocks', 'transactions'] LOOP
        child := parent || '_' || first;
        -- Made apart and attached, for CREATE ... PARTITION OF would wait for every reader.
        IF to_regclass('bitnexus.' || child) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE bitnexus.%I (LIKE bitnexus.%I INCLUDING ALL)', child, parent);
        END IF;
        EXECUTE format(
            'ALTER TABLE bitnexus.%I ATTACH PARTITION bitnexus.%I FOR VALUES %s',
            parent, child, bounds);
        EXECUTE format('COMMENT ON TABLE bitnexus.%I IS %L', child,
            format('The %s of blocks %s to %s', parent, first, ending - 1));
    END LOOP;
    INSERT INTO bitnexus.partitions (first_index, end_index) VALUES (first, ending);
END
$$;
COMMENT ON FUNCTION bitnexus.add_partition(bigint, bigint) IS
    'Adds the partitions for blocks from the first index up to and without the second';

-- Called by whoever moves the checkpoint, in the same transaction, and run with the rights of the
-- owner of these tables: the role that copies may not make tables itself.
CREATE FUNCTION bitnexus.make_partitions(through bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted_rows     CONSTANT bigint := 10000000;
    narrowest_range CONSTANT bigint := 4096;    -- full blocks have 2,000 rows: 8 million
    widest_range    CONSTANT bigint := 262144;  -- however few they have, they may become fuller
    first bigint := (SELECT max(end_index) FROM bitnexus.partitions);
    rows_of_a_block numeric;
    width bigint;
BEGIN
    IF through - first >= widest_range THEN
        RAISE EXCEPTION 'block % is too far beyond the last partition, which ends before %',
            through, first;
    END IF;
    WHILE through >= first LOOP
        SELECT avg(transaction_count) INTO rows_of_a_block
        FROM bitnexus.blocks WHERE index >= first - narrowest_range AND index < first;
        width := wanted_rows / greatest(rows_of_a_block, 1);
        width := greatest(narrowest_range, least(widest_range, width));
        PERFORM bitnexus.add_partition(first, first + width);
        first := first + width;
    END LOOP;
END
$$;
COMMENT ON FUNCTION bitnexus.make_partitions(bigint) IS
    'Adds partitions until there is one for this block, each as wide as the blocks before it suggest';

CREATE FUNCTION bitnexus.block_at(moment timestamptz) RETURNS bigint
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (
            SELECT index FROM bitnexus.blocks
            WHERE sealed_at >= moment ORDER BY sealed_at, index LIMIT 1
        ),
        9223372036854775807
    )
$$;
COMMENT ON FUNCTION bitnexus.block_at(timestamptz) IS
    'The first block sealed at that time or later; beyond all blocks where there is none yet';

REVOKE ALL ON FUNCTION bitnexus.add_partition(bigint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION bitnexus.make_partitions(bigint) FROM PUBLIC;

SELECT bitnexus.add_partition(0, greatest(4096,
    (SELECT max(index) + 1 FROM bitnexus.blocks_0),
    (SELECT max(block_index) + 1 FROM bitnexus.transactions_0)));

INSERT INTO bitnexus.schema_version (version) VALUES (2);
