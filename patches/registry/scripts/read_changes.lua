-- Read the tasks and keys that were touched since a position (arg.since, arg.mark). Returns false
-- if the reader must take a whole snapshot: the position belongs to another past, its changes are
-- no longer kept, they are too many, or an archive was imported.

-- Beyond this many changes a whole snapshot is the smaller answer.
local MAX_CHANGES = 1000

local revision = tonumber(redis.call('GET', REVISION) or '0')
local missing = revision - arg.since
if missing < 0 or missing > MAX_CHANGES then return false end
local entries = redis.call('XRANGE', CHANGES, arg.since .. '-0', '+')
if arg.since > 0 then
  local first = table.remove(entries, 1)
  if not first or first[1] ~= arg.since .. '-0' or mark_of(first[2]) ~= arg.mark then
    return false
  end
end
if #entries ~= missing then return false end

local tasks, keys = {}, {}
for _, entry in ipairs(entries) do
  local found = {}
  for at = 1, #entry[2], 2 do found[entry[2][at]] = entry[2][at + 1] end
  if found.action == 'import' then return false end
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
return {revision, last_mark(), present, gone, present_keys, gone_keys}
