-- Take or keep the lease under which one replica delivers to webhooks, or give it back (arg.ms of 0).
local holder = redis.call('GET', WEBHOOK_LEASE)
if holder and holder ~= arg.owner then return 0 end
if arg.ms == 0 then return redis.call('DEL', WEBHOOK_LEASE) end
redis.call('SET', WEBHOOK_LEASE, arg.owner, 'PX', arg.ms)
return 1
