-- Create a tenant, or replace the description, quotas and weight of an existing one. A quota below
-- what is used already only prevents more.
local tenant = load_tenant()
local is_deleted = tenant ~= nil and tenant.deleted_ms ~= nil
if not is_deleted then
  local uncounted
  tenant, uncounted = counted_tenant()
  if uncounted then return uncounted end
end
local found = (is_deleted or not is_there(tenant)) and 0 or tenant.revision
if arg.if_match and arg.if_match ~= found then return fail('stale', found) end
local was_created = is_deleted or not is_there(tenant)

local function are_same(some, others)
  for name, limit in pairs(some) do
    if others[name] ~= limit then return false end
  end
  return true
end

if not was_created and tenant.revision > 0 and tenant.description == arg.description
    and are_same(tenant.quotas, arg.quotas) and are_same(arg.quotas, tenant.quotas)
    and (tenant.weight or 1) == arg.weight then
  return cjson.encode({revision = tenant.revision, was_created = false})
end
local revision = new_revision()
if is_deleted then
  tenant = {created_ms = now_ms, deleted_revision = tenant.deleted_revision,
            usage = {tasks = 0, versions = 0, bundle_bytes = 0, head_bytes = 0, patch_bytes = 0,
                     keys = 0}}
end
tenant.revision, tenant.updated_ms = revision, now_ms
tenant.description, tenant.quotas, tenant.weight = arg.description, arg.quotas, arg.weight
redis.call('HSET', TENANTS, arg.tenant, cjson.encode(tenant))
record(revision, 'put_tenant', {tenant = arg.tenant, quotas = cjson.encode(arg.quotas),
                                weight = tostring(arg.weight)})
return done({revision = revision, was_created = was_created})
