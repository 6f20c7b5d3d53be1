-- Read everything that replicas serve by. A caller that knew the registry before (arg.known) also gets
-- what was removed since then; or, in place of everything, why this is no continuation of it.
local lost = loss_of(arg.known)
local revision = tonumber(redis.call('GET', REVISION) or '0')
if lost then return {lost, revision} end

-- The names of what was removed since the caller's position. False if the trail does not say it: it is
-- not kept that far, or an operator has replaced the registry since.
local function removed_since(since)
  local entries = redis.call('XRANGE', CHANGES, (since + 1) .. '-0', '+')
  if identity() ~= arg.known.identity or #entries ~= revision - since then return false end
  local removed = {}
  for _, entry in ipairs(entries) do
    local found = {}
    for at = 1, #entry[2], 2 do found[entry[2][at]] = entry[2][at + 1] end
    if found.action == 'delete_task' then
      removed[#removed + 1] = found.tenant .. '/' .. found.task
    elseif found.action == 'revoke_key' then
      removed[#removed + 1] = found.key_id
    elseif found.action == 'delete_tenant' then
      removed[#removed + 1] = found.tenant
    end
  end
  return removed
end

local removed = arg.known and arg.known.revision > 0 and removed_since(arg.known.revision)
return {'', revision, last_mark(), identity(), redis.call('HGETALL', TASKS),
        redis.call('HGETALL', API_KEYS), redis.call('HGETALL', TENANTS), removed or false,
        redis.call('HGETALL', AVAILABILITY)}
