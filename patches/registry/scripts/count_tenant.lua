-- Make the record of a tenant that has none, or whose record does not say what it uses, if the
-- registry is still at the position at which the caller has counted.
local text = redis.call('HGET', TENANTS, arg.tenant)
local tenant = text and cjson.decode(text) or nil
if tenant and (tenant.usage or tenant.deleted_ms) then return done({}) end
local found = tonumber(redis.call('GET', REVISION) or '0')
if found ~= arg.since or last_mark() ~= arg.seen_mark then return fail('stale', found) end
tenant = tenant or {revision = 0, created_ms = now_ms, updated_ms = now_ms, description = '',
                    quotas = {}}
tenant.usage = arg.usage
redis.call('HSET', TENANTS, arg.tenant, cjson.encode(tenant))
return done({})
