-- Remove an API key of one tenant.
local key = load_key()
if not key then return fail('key_not_found') end
local tenant, refused = counted_tenant()
if refused then return refused end
local revision = new_revision()
count(tenant, {keys = -1})
redis.call('HDEL', API_KEYS, arg.key_id)
redis.call('HDEL', KEY_USES, arg.key_id)
record(revision, 'revoke_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision})
