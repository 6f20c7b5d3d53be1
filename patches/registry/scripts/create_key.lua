-- Store an API key; with arg.is_first_only, only if there is no key at all, and with arg.must_exist,
-- only if the tenant is there already.
if arg.is_first_only and redis.call('HLEN', API_KEYS) > 0 then return fail('keys_exist') end
local tenant, refused = counted_tenant()
if not refused and arg.must_exist and not is_there(tenant) then
  refused = fail('tenant_not_found')
end
refused = refused or over_quota(tenant, {keys = 1})
if refused then return refused end
local revision = new_revision()
count(tenant, {keys = 1})
arg.key.created_ms = now_ms
local text = cjson.encode(arg.key)
redis.call('HSET', API_KEYS, arg.key_id, text)
record(revision, 'create_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision, text = text})
