-- The constraints stay valid.
SELECT 1;
