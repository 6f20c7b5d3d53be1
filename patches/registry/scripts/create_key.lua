-- Store an API key; with arg.is_first_only, only if there is no key at all.
if arg.is_first_only and redis.call('HLEN', API_KEYS) > 0 then return fail('keys_exist') end
local revision = new_revision()
arg.key.created_ms = now_ms
redis.call('HSET', API_KEYS, arg.key_id, cjson.encode(arg.key))
record(revision, 'create_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision, created_ms = now_ms})
