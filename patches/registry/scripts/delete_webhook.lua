-- Remove a webhook of a tenant.
if redis.call('HEXISTS', WEBHOOKS, arg.hook) == 0 then return fail('webhook_not_found') end
local revision = new_revision()
redis.call('HDEL', WEBHOOKS, arg.hook)
redis.call('HDEL', WEBHOOK_STATES, arg.hook)
record(revision, 'delete_webhook', {tenant = arg.tenant, note = arg.note})
return done({revision = revision})
