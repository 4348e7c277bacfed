#include "pipeline/chat_templates.h"

#include <algorithm>
#include <array>

namespace braid {
namespace {

struct Named {
  std::string_view name, text;
};

// Each keeps to mergekit's text even where that is not what the models' makers published: an answer in `alpaca` begins
// right behind the instruction, `llama3` ends a message with a line break, `exaone` indents its lines.
constexpr auto kTemplates = std::to_array<Named>({
    {"alpaca",
     "{%- set systems = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | list -%}"
     "{{ (systems | last | trim if systems else '') + '\\n\\n' }}"
     "{%- set titles = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} -%}"
     "{%- for message in messages -%}"
     "{%- if message['role'] in titles -%}"
     "{{ '### ' + titles[message['role']] + ':\\n' + message['content'] | trim + ('' if loop.last else '\\n\\n') }}"
     "{%- endif -%}"
     "{%- endfor -%}"
     "{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}{{ '### Response:\\n' }}{%- endif -%}"},
    {"chatml",
     "{%- for message in messages -%}"
     "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
     "{%- endfor -%}"
     "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"},
    {"exaone",
     "{%- set end = '        [|endofturn|]\\n\\n' -%}"
     "{%- if messages and messages[0]['role'] != 'system' -%}{{ '        [|system|][|endofturn|]\\n\\n' }}{%- endif -%}"
     "{%- for message in messages -%}"
     "{{ '    [|' + message['role'] + '|]' + message['content'] + '\\n' }}"
     "{{ '        \\n\\n' if message['role'] == 'user' else end }}"
     "{%- endfor -%}"
     "{%- if add_generation_prompt -%}{{ '    [|assistant|]\\n' }}{%- endif -%}"},
    {"llama3",
     "{%- if messages -%}{{ bos_token }}{%- endif -%}"
     "{%- for message in messages -%}"
     "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
     "{{ message['content'] | trim + '<|eot_id|>\\n' }}"
     "{%- endfor -%}"
     "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"},
    {"mistral",
     "{%- set system = messages[0]['role'] == 'system' -%}"
     "{{ bos_token }}"
     "{%- for message in messages[1 if system else 0:] -%}"
     "{%- if message['role'] not in ['user', 'assistant'] -%}"
     "{{ raise_exception('mistral has roles user and assistant, and one system message in front') }}"
     "{%- elif message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
     "{{ raise_exception('mistral: user and assistant must take turns, the user first') }}"
     "{%- elif message['role'] == 'user' -%}"
     "{{ ' [INST] ' + (messages[0]['content'] + '\\n\\n' if system and loop.first else '') }}"
     "{{ message['content'] + ' [/INST]' }}"
     "{%- else -%}"
     "{{ ' ' + message['content'] + eos_token }}"
     "{%- endif -%}"
     "{%- endfor -%}"},
});

}  // namespace

const std::vector<std::string_view>& ChatTemplateNames() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const Named& named : kTemplates) all.push_back(named.name);
    return all;
  }();
  return names;
}

std::optional<std::string_view> NamedChatTemplate(std::string_view name) {
  const auto found = std::find_if(kTemplates.begin(), kTemplates.end(),
                                  [&](const Named& named) { return named.name == name; });
  if (found == kTemplates.end()) return std::nullopt;
  return found->text;
}

}  // namespace braid
