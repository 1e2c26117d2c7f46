DROP VIEW billing_overview;
DROP TABLE totals;
