-- A tenant's record holds its description and quotas, and what it uses of them. Registries that are
-- older than these records have none: a script that has to change the usage then reports
-- tenant_uncounted, and the caller counts the tenant and runs the script again. The record of a
-- deleted tenant stays, without anything but the time, so that a late change cannot bring it back.

local DEFAULT_TENANT = 'default'

local function load_tenant()
  local text = redis.call('HGET', TENANTS, arg.tenant)
  return text and cjson.decode(text) or nil
end

-- Whether a tenant that was counted is more than a name that somebody asked for.
local function is_there(tenant)
  return arg.tenant == DEFAULT_TENANT or tenant.revision > 0
    or tenant.usage.tasks > 0 or tenant.usage.keys > 0
end

local function counted_tenant()
  local tenant = load_tenant()
  if tenant and tenant.deleted_ms then return nil, cjson.encode({error = 'tenant_not_found'}) end
  if not tenant or not tenant.usage then
    return nil, cjson.encode({error = 'tenant_uncounted'})
  end
  return tenant, nil
end

-- What versions with this summary add to the usage; `times` is -1 for one that is removed.
local function added_by(summary, times)
  local found = cjson.decode(summary)
  return {versions = times, bundle_bytes = times * found.size_bytes,
          head_bytes = times * found.head_bytes, patch_bytes = times * found.patch_bytes}
end

-- Whether one bundle alone has more than the tenant's bundles may have.
local function too_costly(tenant, summary)
  local found = cjson.decode(summary)
  for _, name in ipairs({'outputs', 'row_work', 'answer_bytes'}) do
    local limit = tenant.quotas[name]
    if limit and (found[name] or 0) > limit then
      return cjson.encode({error = 'bundle_quota_exceeded', quota = name, limit = limit,
                           found = math.ceil(found[name])})
    end
  end
  return nil
end

local function over_quota(tenant, more)
  for name, amount in pairs(more) do
    local limit = tenant.quotas[name]
    if limit and tenant.usage[name] + amount > limit then
      return cjson.encode({error = 'quota_exceeded', quota = name, limit = limit,
                           found = tenant.usage[name], wanted = amount})
    end
  end
  return nil
end

local function count(tenant, more)
  for name, amount in pairs(more) do
    tenant.usage[name] = math.max(0, tenant.usage[name] + amount)
  end
  redis.call('HSET', TENANTS, arg.tenant, cjson.encode(tenant))
end

-- An API key of the tenant, by arg.key_id; nil if the tenant has no such key.
local function load_key()
  local text = redis.call('HGET', API_KEYS, arg.key_id)
  local key = text and cjson.decode(text)
  return key and key.tenant == arg.tenant and key or nil
end

-- The secret that a rotation has replaced, as long as it is valid.
local function valid_previous(key)
  return key.previous and key.previous.expires_ms > now_ms and key.previous or nil
end
