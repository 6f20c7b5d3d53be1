-- Read the tasks and keys that were touched since a position (arg.known), and how many there are now.
-- Instead, why this registry is no continuation of that position; or nothing at all if the reader must
-- take a whole snapshot: its changes are no longer kept, they are too many, or one of them has changed
-- what it does not name: an operator has replaced the registry, or a tenant was deleted.

-- Beyond this many changes a whole snapshot is the smaller answer.
local MAX_CHANGES = 1000

local revision = tonumber(redis.call('GET', REVISION) or '0')
local lost = loss_of(arg.known)
if lost then return {lost, revision} end
local since = arg.known.revision
local missing = revision - since
if missing < 0 or missing > MAX_CHANGES then return false end
local entries = redis.call('XRANGE', CHANGES, since .. '-0', '+')
if since > 0 then
  local first = table.remove(entries, 1)
  if not first or first[1] ~= since .. '-0' or mark_of(first[2]) ~= arg.known.mark then
    return false
  end
end
if #entries ~= missing then return false end

local REPLACING = {import = true, restore = true, accept = true, delete_tenant = true}
local tasks, keys, tenants = {}, {}, {}
for _, entry in ipairs(entries) do
  local found = {}
  for at = 1, #entry[2], 2 do found[entry[2][at]] = entry[2][at + 1] end
  if REPLACING[found.action] then return false end
  if found.action == 'put_tenant' then tenants[found.tenant] = true end
  if found.task then tasks[found.tenant .. '/' .. found.task] = true end
  if found.key_id then keys[found.key_id] = true end
end
local function read(hash, fields)
  local present, gone = {}, {}
  for field, _ in pairs(fields) do
    local text = redis.call('HGET', hash, field)
    if text then
      present[#present + 1] = field
      present[#present + 1] = text
    else
      gone[#gone + 1] = field
    end
  end
  return present, gone
end
local present, gone = read(TASKS, tasks)
local present_keys, gone_keys = read(API_KEYS, keys)
local present_tenants = read(TENANTS, tenants)
local present_lists = read(AVAILABILITY, tasks)
return {'', revision, last_mark(), identity(), present, gone, present_keys, gone_keys, present_tenants,
        redis.call('HLEN', TASKS), redis.call('HLEN', API_KEYS), present_lists}
