-- Read what a copy of the registry lacks: some tasks with their versions, remembered states and
-- lists of items (the keys of the first two follow the usual ones, arg.own_keys of them); and with arg.since, the API keys, the tenants and
-- the changes after that revision.
local PAGE = 5000

local lost = loss_of(arg.known)
local revision = tonumber(redis.call('GET', REVISION) or '0')
if lost then return {lost, revision} end
local tasks = {}
for index, field in ipairs(arg.fields) do
  local at = arg.own_keys + 2 * index - 1
  tasks[index] = {redis.call('HGET', TASKS, field) or '', redis.call('HGETALL', KEYS[at]),
                  redis.call('LRANGE', KEYS[at + 1], 0, -1),
                  redis.call('HGET', AVAILABILITY, field) or ''}
end
local rest = {}
if arg.since then
  rest = {redis.call('HGETALL', API_KEYS), redis.call('HGETALL', TENANTS),
          redis.call('XRANGE', CHANGES, (arg.since + 1) .. '-0', '+', 'COUNT', PAGE)}
end
return {'', revision, last_mark(), identity(), tasks, rest}
