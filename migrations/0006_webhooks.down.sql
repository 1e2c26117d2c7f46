DROP TABLE webhook_queues, webhook_deliveries, outbox, webhooks;
