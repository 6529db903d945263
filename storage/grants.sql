-- What a node's role needs to copy, and no more: it adds rows and moves the one row that says how
-- far. It cannot change or delete a row that is there, and makes no tables; partitions are made for
-- it by `bitnexus.make_partitions`, with the rights of the tables' owner. Run by that owner.

REVOKE ALL ON ALL TABLES IN SCHEMA bitnexus FROM {role};
GRANT USAGE ON SCHEMA bitnexus TO {role};
GRANT SELECT ON bitnexus.schema_version TO {role};
GRANT SELECT, INSERT ON bitnexus.blocks, bitnexus.transactions TO {role};
GRANT SELECT, INSERT (cluster_id, index, hash), UPDATE (index, hash, updated_at)
    ON bitnexus.checkpoint TO {role};
GRANT EXECUTE ON FUNCTION bitnexus.make_partitions(bigint) TO {role};
