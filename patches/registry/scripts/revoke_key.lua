-- Remove an API key of one tenant.
local text = redis.call('HGET', API_KEYS, arg.key_id)
if not text or cjson.decode(text).tenant ~= arg.tenant then return fail('key_not_found') end
local revision = new_revision()
redis.call('HDEL', API_KEYS, arg.key_id)
record(revision, 'revoke_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision})
