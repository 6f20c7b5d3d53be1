"""Reading several keys in one step. Scripts, since MULTI is refused when memory is short."""

MAX_CHANGES = 1000
"""Beyond so many changes a whole snapshot is the smaller answer."""

_MARK = """
local function mark_of(fields)
  for at = 1, #fields, 2 do
    if fields[at] == 'mark' then return fields[at + 1] end
  end
  return ''
end

local function last_mark()
  local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  return last and mark_of(last[2]) or ''
end
"""

READ_ALL = (
    _MARK
    + """
return {redis.call('GET', KEYS[1]) or '0', last_mark(), redis.call('HGETALL', KEYS[2]),
        redis.call('HGETALL', KEYS[4])}
"""
)

READ_TASK = """
return {redis.call('HGET', KEYS[2], cjson.decode(ARGV[1]).field) or '',
        redis.call('HGETALL', KEYS[10])}
"""

READ_CHANGES = (
    _MARK + f"""
local arg = cjson.decode(ARGV[1])
local revision = tonumber(redis.call('GET', KEYS[1]) or '0')
local missing = revision - arg.since
if missing < 0 or missing > {MAX_CHANGES} then return false end
local entries = redis.call('XRANGE', KEYS[3], arg.since .. '-0', '+')
if arg.since > 0 then
  local first = table.remove(entries, 1)
  if not first or first[1] ~= arg.since .. '-0' or mark_of(first[2]) ~= arg.mark then
    return false
  end
end
if #entries ~= missing then return false end
"""
    """
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
local present, gone = read(KEYS[2], tasks)
local present_keys, gone_keys = read(KEYS[4], keys)
return {revision, last_mark(), present, gone, present_keys, gone_keys}
"""
)
