// A tree of recipe values as text, in TOML or YAML: what the parsers of recipe_toml.cc and recipe_yaml.cc turn into the
// same tree again. Numbers keep all their bits; places and the difference between one line and several are not kept.
#pragma once

#include <string>

#include "pipeline/recipe_node.h"

namespace braid {

// For building a tree.
RecipeNode TextNode(std::string text);
RecipeNode NumberNode(double number);
RecipeNode FlagNode(bool flag);
RecipeNode ListNode();
RecipeNode TableNode();
void Add(RecipeNode* table, std::string key, RecipeNode value);

// `root` is a table. In TOML, values that are no tables come first in each table, whatever their place: what stands
// behind the header of a table belongs to it. No kNothing or kDate in the tree.
std::string FormatToml(const RecipeNode& root);
std::string FormatYaml(const RecipeNode& root);

}  // namespace braid
