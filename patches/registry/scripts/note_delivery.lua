-- Note how far a webhook has come. Only the replica that holds the lease may, and only of the webhook as
-- it read it. This is no change of the registry.
if redis.call('GET', WEBHOOK_LEASE) ~= arg.owner then return 0 end
local text = redis.call('HGET', WEBHOOKS, arg.hook)
if not text or cjson.decode(text).revision ~= arg.hook_revision then return 0 end
redis.call('HSET', WEBHOOK_STATES, arg.hook, arg.state)
return 1
